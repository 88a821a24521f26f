"""`python -m diffgr2.cli`, which is what torchrun starts."""

from diffgr2.cli import main

main()
