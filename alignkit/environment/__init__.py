"""What answers a policy between its turns: environments, tools, episodes. It knows no reward and no algorithm."""
