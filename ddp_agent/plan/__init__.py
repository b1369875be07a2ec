"""What other links and other numbers of ranks would cost, fitted from finished runs. Imports no training code."""
