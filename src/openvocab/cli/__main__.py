"""`python -m openvocab.cli`, which torchrun takes."""

from openvocab.cli import main

main()
