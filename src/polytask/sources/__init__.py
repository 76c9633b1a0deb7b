"""Where data comes from: functions that return TaskData."""
