"""`python -m benchmarks.survival`, from the repository's root."""

from benchmarks.survival.run import main

if __name__ == "__main__":  # workers import it too
    main()
