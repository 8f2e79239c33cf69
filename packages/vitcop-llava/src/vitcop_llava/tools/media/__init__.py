"""Pictures and clips from files, with limits on what a file may cost."""
