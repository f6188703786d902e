"""`python -m rlhf`, and with it `accelerate launch -m rlhf train RECIPE`."""

from .cli import main

if __name__ == "__main__":
    main()
