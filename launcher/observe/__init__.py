"""What a job's folder tells: curves, figures, reports. It reads the folder alone, and starts and changes nothing."""
