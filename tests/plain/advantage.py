"""Advantages with lists and loops, from the papers' sums."""

import math


def _mean(numbers):
    return sum(numbers) / len(numbers)


def _deviation(numbers):
    centre = _mean(numbers)
    return math.sqrt(sum((x - centre) ** 2 for x in numbers) / (len(numbers) - 1))


def _all_same(numbers):
    return all(x == numbers[0] for x in numbers)


def group_mean(groups):
    return [[0.0 if _all_same(group) else r - _mean(group) for r in group] for group in groups]


def group_normalised(groups):
    return [[0.0 if _all_same(group) else (r - _mean(group)) / _deviation(group) for r in group] for group in groups]


def batch_std(groups):
    kept = [r for group in groups if not _all_same(group) for r in group]
    return [[0.0 if _all_same(group) else (r - _mean(group)) / _deviation(kept) for r in group] for group in groups]


def leave_one_out(groups):
    result = []
    for group in groups:
        row = []
        for i, r in enumerate(group):
            others = [other for j, other in enumerate(group) if j != i]
            row.append(r - _mean(others))
        result.append(row)
    return result


def batch_normalised(groups):
    everything = [r for group in groups for r in group]
    if _all_same(everything):
        return [[0.0 for _ in group] for group in groups]
    return [[(r - _mean(everything)) / _deviation(everything) for r in group] for group in groups]


def group_mean_batch_normalised(groups):
    return batch_normalised(group_mean(groups))


def overlong_penalty(length, max_tokens, margin):
    if length <= max_tokens - margin:
        return 0.0
    if length <= max_tokens:
        return ((max_tokens - margin) - length) / margin
    return -1.0
