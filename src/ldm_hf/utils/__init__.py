"""What every part of the package uses: files and locks, processes, progress bars, missing dependencies."""
