"""What all routes stand on."""
