"""`python -m clada` is the `clada` command."""

from clada.cli import main

raise SystemExit(main())
