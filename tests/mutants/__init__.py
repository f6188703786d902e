"""Small faults put into the code on purpose: each must make a test fail, or be listed with the reason why it cannot."""
