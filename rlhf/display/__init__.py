"""What people look at: pages, figures, progress bars."""
