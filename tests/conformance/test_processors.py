"""Transformers' own tests of a processor, on ours, for each family that has a processor in transformers.

A test that does not apply is named with the reason, and must still fail: else the reason is out of date.
"""

import unittest
from collections import Counter

import numpy as np
import pytest
from conftest import picture
from processor_suite import load, why_not

from unime import UniMEProcessor

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_next", "llava_onevision")

NOT_APPLICABLE = {
    "test_init_arguments_not_in_processor_kwargs": "`max_length` and `num_frames` are limits of items, for `prepare`",
}
OF_LLAVA = {
    "test_tokenizer_decode_defaults": "the test leaves out `backbone`, which has Qwen2-VL's by default",
}
SKIPPED_FOR = ("audio", "video", "librosa", "Torchcodec", "feature_extractor", "tools")  # what we do not claim


@pytest.mark.skipif(bool(why_not()), reason=why_not())
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_own_suite(tiny, tmp_path, family):
    folder, _ = tiny(family)
    picture(7, (640, 425)).save(tmp_path / "picture.png")
    settings = {"backbone": UniMEProcessor.from_backbone(folder).backbone}

    class Tests(load(tmp_path / "picture.png"), unittest.TestCase):
        processor_class = UniMEProcessor

        @classmethod
        def _setup_from_components(cls):
            return UniMEProcessor.from_backbone(folder)

        @staticmethod
        def prepare_processor_dict():
            return settings

    np.random.seed(0)
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Tests).run(result)

    not_applicable = NOT_APPLICABLE | OF_LLAVA if family.startswith("llava") else NOT_APPLICABLE
    failed = {test.id().rpartition(".")[2]: report for test, report in result.failures + result.errors}
    assert failed.keys() == not_applicable.keys(), "\n".join(failed.values())

    reasons = Counter(reason for _, reason in result.skipped)
    unexplained = [reason for reason in reasons if not any(word in reason for word in SKIPPED_FOR)]
    assert not unexplained
    print(f"{family}: {result.testsRun - len(failed) - len(result.skipped)} of {result.testsRun}, {len(failed)} fail")
    assert result.testsRun - len(failed) - len(result.skipped) >= 30
