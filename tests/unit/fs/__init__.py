"""Tests of the control plane without a mount: the test plays the daemon, and so the kernel."""
