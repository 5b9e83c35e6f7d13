"""Workers: supervise generations, follow the chain, settle. Any of them may fail at any moment."""
