"""Workers: supervise generations, watch deposits, settle. Any of them may die at any moment."""
