"""What a job gives to its pipeline's call: pictures, videos and further arguments."""
