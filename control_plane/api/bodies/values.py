"""The types of the values in the bodies of requests, each with its bounds and its words for errors."""

from typing import Annotated, Any

from msgspec import Meta

MAX_TOKEN_IDS = 1_000_000
"""The most token ids of all prompts together."""
MAX_CHOICES = 128
"""The most answers to all prompts together."""
UNICODE = r"\A[^\ud800-\udfff]*\Z"
"""Text without half a surrogate pair, which JSON can escape and UTF-8 cannot encode."""
_MAX = (1 << 63) - 1

Text = Annotated[str, Meta(pattern=UNICODE, description="a string of Unicode")]
Natural = Annotated[int, Meta(ge=0, le=_MAX, description="a whole number of at least 0")]
Positive = Annotated[int, Meta(ge=1, le=_MAX, description="a whole number of at least 1")]
Choices = Annotated[int, Meta(ge=1, le=MAX_CHOICES, description=f"a whole number from 1 to {MAX_CHOICES}")]
Logprobs = Annotated[int, Meta(ge=0, le=20, description="a whole number from 0 to 20")]
TopK = Annotated[int, Meta(ge=-1, le=_MAX, description="a whole number of at least -1")]
Seed = Annotated[int, Meta(ge=-_MAX - 1, le=_MAX, description=f"a whole number from {-_MAX - 1} to {_MAX}")]
Temperature = Annotated[float, Meta(ge=0, le=2, description="a number from 0 to 2")]
Probability = Annotated[float, Meta(ge=0, le=1, description="a number from 0 to 1")]
# Numbers above 0: less than 1e-6 can leave float32's range.
TopP = Annotated[float, Meta(ge=1e-6, le=1, description="a number from 1e-06 to 1")]
RepetitionPenalty = Annotated[float, Meta(ge=1e-6, le=10, description="a number from 1e-06 to 10")]
Penalty = Annotated[float, Meta(ge=-2, le=2, description="a number from -2 to 2")]
StopString = Annotated[str, Meta(min_length=1, max_length=1024, pattern=UNICODE)]
StopStrings = Annotated[
    list[StopString],
    Meta(
        max_length=16,
        description="a string of 1 to 1024 Unicode characters, or a list of at most 16 of these",
    ),
]
TokenIds = Annotated[
    list[int], Meta(max_length=MAX_TOKEN_IDS, description=f"a list of at most {MAX_TOKEN_IDS} token ids")
]
StopTokenIds = Annotated[list[int], Meta(max_length=128, description="a list of at most 128 token ids")]
LogitBias = Annotated[
    dict[int, Annotated[float, Meta(ge=-100, le=100)]],
    Meta(
        max_length=1024,
        description="an object of at most 1024 token ids, each with a number from -100 to 100",
    ),
]
Prompts = Annotated[
    str | Annotated[list[str | int | list[int]], Meta(max_length=MAX_TOKEN_IDS)],
    Meta(
        description="a string, a list of token ids, or a list of one of these, "
        f"with at most {MAX_TOKEN_IDS} token ids"
    ),
]
Object = Annotated[dict[str, Any], Meta(description="an object")]
Documents = Annotated[list[dict[str, Any]], Meta(max_length=256, description="a list of at most 256 objects")]
Effort = Annotated[
    str, Meta(max_length=32, pattern=UNICODE, description="a string of at most 32 Unicode characters")
]
