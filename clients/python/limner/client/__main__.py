"""`python -m limner.client` is the command `limner`."""

from limner.client.command import main

if __name__ == "__main__":
    main()
