"""The flags of a recipe's evaluations, which import no torch: a command line is read before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class EvaluationConfig:
    """What is measured on held-out text; every measure of generated text is a sampled one."""

    examples: int = 256
    """Held-out examples of which the divergences to the teacher are taken, validation and test alike."""
    text_examples: int = 128
    """Test examples to which responses are generated and scored."""
    valid_text_examples: int = 32
    """Validation examples to which responses are generated, for the ROUGE-L by which a checkpoint is the best; 0: none."""
    max_new_tokens: int = 256
    """Tokens after which a generated response is cut. [256]"""
    sampling_temperature: float = 1.0
    """Sampling temperature; 0 is greedy. [1]"""
    sampling_seed: int = 10
    """Seed of the sampled responses. [10]"""
    evaluation_batch_size: int = 16
    """Sequences per forward when evaluating."""
