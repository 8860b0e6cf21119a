"""One row per answer, [prompt | answer], the way a trainer without shared prefixes feeds it."""


def rows(prompts, answers):
    """(ids, position columns, places that predict, targets) of every answer; the last token is not fed."""
    for prompt, group in zip(prompts, answers, strict=True):
        columns = [tuple(column) for column in prompt.position_3P.T.tolist()]
        start = max(max(column) for column in columns) + 1
        for answer in group:
            ids = [*prompt.ids, *answer][: len(prompt.ids) + max(len(answer) - 1, 0)]
            position = columns + [(start + i,) * 3 for i in range(len(ids) - len(columns))]
            yield ids, position, [len(prompt.ids) - 1 + i for i in range(len(answer))], list(answer)
