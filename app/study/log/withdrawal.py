"""Withdrawal codes: only a participant has theirs, and the log has its hash."""

import hashlib

LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # without those that are easily mistaken for each other


def code_of(secret: str) -> str:
    """Derive a withdrawal code of 99 bits from a secret, such as that of a browser's tab.

    The same secret gives the same code after a restart, so the code need not be stored anywhere.
    """
    left = int.from_bytes(hashlib.sha256(f"code {secret}".encode()).digest())
    drawn = ""
    for _ in range(20):
        left, place = divmod(left, len(LETTERS))
        drawn += LETTERS[place]
    return "-".join(drawn[i : i + 5] for i in range(0, 20, 5))


def participant_of(code: str) -> str:
    """Return the participant's name in the log: the hash of a long random code can't be reversed."""
    plain = "".join(each for each in code.lower() if each.isalnum())
    return hashlib.sha256(f"withdrawal {plain}".encode()).hexdigest()[:32]
