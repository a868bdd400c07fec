"""`python -m cladastats` is the `cladastats` command."""

from cladastats.cli import main

raise SystemExit(main())
