"""What `far-node doctor` and `far-node bench` find out."""
