"""What a reward is: plain callables from completions to scores; knows nothing of the policy that wrote them."""
