"""What every route uses: who calls, limits, errors as problems, and answers that are no JSON."""
