"""What each command does; `cli` has checked its options before."""
