"""What the self-teacher reads (`context.py`, pure) and whose weights it has (`schedule.py`)."""
