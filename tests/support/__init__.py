"""What several tests share: small stages, toy tasks, processes to kill, a server to ask."""
