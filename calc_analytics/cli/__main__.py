"""`python -m calc_analytics.cli` is `calc-analytics`."""

from calc_analytics.cli.main import main

if __name__ == "__main__":
    main(prog_name="calc-analytics")
