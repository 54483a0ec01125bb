"""A group between dispatch and its last verdict."""

from magistral_jax.types import Group, OpenGroup


class Opened:
    """An `OpenGroup` being filled."""

    def __init__(self, group: OpenGroup) -> None:
        self.prompt = group.prompt
        self.completions = dict(group.completions)
        self.verdicts = dict(group.verdicts)

    def picture(self) -> OpenGroup:
        return OpenGroup(
            prompt=self.prompt, completions=dict(self.completions), verdicts=dict(self.verdicts)
        )

    def whole(self) -> Group:
        places = range(len(self.completions))
        return Group(
            prompt=self.prompt,
            completions=tuple(self.completions[i] for i in places),
            verdicts=tuple(self.verdicts[i] for i in places),
        )


def group_of(entry: OpenGroup | Group) -> int:
    return entry.prompt.group
