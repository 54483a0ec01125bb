"""What a person does with a policy or a machine beside training: ask, measure, bench."""
