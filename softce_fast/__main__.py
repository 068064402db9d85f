"""``python -m softce_fast``: the configuration; ``python -m softce_fast bench``: a quick race."""

from __future__ import annotations

import argparse

from . import _bench, show_config


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m softce_fast", description=__doc__)
    parser.add_argument(
        "command",
        nargs="?",
        choices=["config", "bench"],
        default="config",
        help="config: what is installed and in use; bench: a race against NumPy, under a minute",
    )
    if parser.parse_args().command == "bench":
        _bench.run()
    else:
        show_config()


if __name__ == "__main__":
    main()
