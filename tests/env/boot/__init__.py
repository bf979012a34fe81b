"""What an instance does when it boots: reads its user data and becomes a Node."""
