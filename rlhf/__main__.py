"""`python -m rlhf`, and with it `accelerate launch -m rlhf train RECIPE`."""

from rlhf.cli import main

if __name__ == "__main__":
    main()
