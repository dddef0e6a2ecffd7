"""Ranking lists: many candidates in one prompt, and windows of them where they do not fit."""

import inspect
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace

import torch
from tqdm.auto import trange

from .items_unime import PromptTooLong
from .preset_unime import Lists
from .prompts_unime import LISTWISE_ANSWER
from .ranking_unime import log_odds_among, log_probability, rival_tokens
from .vlm_unime import wants_progress
from .windows_unime import order_in_windows, read_order, window_places

NUMBERS = Lists()  # UniME-V2's question about a list, which a number answers


class ListRanking:
    """The part of a reranker that sees several candidates at once."""

    def _listwise_log_odds(
        self, query, candidates, rounds: int, seed: int, batch_tokens: int, show_progress, reading: dict
    ) -> torch.Tensor:
        """Log-odds `[N]` that each candidate is the best of all, of probabilities averaged over rounds; float64."""
        by_round = []
        for order in self._shuffled(len(candidates), rounds, seed, show_progress):
            log_probabilities = torch.empty(len(order), dtype=torch.float64)
            log_probabilities[order] = self._log_probabilities_of(query, candidates, order, batch_tokens, reading)
            by_round.append(log_probabilities)
        return log_odds_among(torch.stack(by_round).logsumexp(dim=0))  # the number of rounds cancels

    def _windowed_places(
        self, query, candidates, window: int, rounds: int, seed: int, batch_tokens: int, show_progress, reading: dict
    ) -> torch.Tensor:
        """Places `[N]`, N for the best of N candidates, 1 for the last, averaged over rounds.

        Windows of neighbours are put in order one after the other; see [`~unime.windows_unime.window_places`].
        """
        lists = self._lists
        windows = window_places(len(candidates), window, lists.stride or max(1, window // 2), lists.from_below)

        # every round puts the whole list in order once
        places = torch.zeros(len(candidates))
        for shuffled in self._shuffled(len(candidates), rounds, seed, show_progress):

            def order_of(shown: list[int], shuffled=shuffled) -> list[int]:
                indices = [shuffled[i] for i in shown]
                order = self._order_of_window(query, candidates, indices, batch_tokens, reading)
                return [shown[place] for place in order]

            order = order_in_windows(len(candidates), windows, order_of)

            # N points for the best of N
            best_first = [shuffled[i] for i in order]
            places[best_first] += torch.arange(len(order), 0, -1, dtype=torch.float32) / rounds
        return places

    def _order_of_window(self, query, candidates, indices: list[int], batch_tokens: int, reading: dict) -> list[int]:
        """The places in a window of the candidates of these indices, best first."""
        if self._lists.turn is None:
            log_probabilities = self._log_probabilities_of(query, candidates, indices, batch_tokens, reading)
            return log_probabilities.argsort(descending=True, stable=True).tolist()

        # errors call a candidate by the number that the caller knows
        shown = [candidates[i] for i in indices]
        names = [f"candidate {i}" for i in indices]
        question = self.processor.list_question(query, shown, names, reading["instruction"], reading["benchmark"])
        (entry,) = self.processor.prepare([question], names=["query and candidates"], resolution=reading["resolution"])

        answer = self._generate(entry, self._lists.new_tokens)
        order = read_order(answer, len(indices))
        if order is None:
            warnings.warn(
                f"the answer {answer.strip()[:80]!r} is no order of {len(indices)} candidates; their order stays.",
                stacklevel=6,
            )
            return list(range(len(indices)))
        return order

    def _shuffled(self, count: int, rounds: int, seed: int, show_progress) -> Iterator[list[int]]:
        """The candidates as they came, and then in another order for every further round."""
        if rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {rounds}.")
        generator = torch.Generator().manual_seed(seed)
        is_silent = not wants_progress(show_progress, rounds)
        for number in trange(rounds, desc="Ranking", disable=is_silent, unit="round"):
            order = torch.randperm(count, generator=generator) if number else torch.arange(count)
            yield order.tolist()

    @property
    def _lists(self) -> Lists:
        """How the preset is asked about lists.

        Raises:
            ValueError: it is not.
        """
        judging = self.processor.rules.judging
        lists = NUMBERS if judging is None else judging.lists
        if lists is None:
            raise ValueError(
                f"the preset {self.processor.preset!r} asks about single candidates only; rank by 'pointwise'."
            )
        return lists

    def list_window(self, query, candidates, reading: dict) -> int:
        """How many candidates one prompt shows: the preset's number, or as many as fit whichever they are.

        Args:
            query, candidates: items.
            reading (`dict`): `resolution`, `benchmark` and `instruction`, as in `rank`.

        Raises:
            ValueError: not even two fit, or a candidate cannot be read.
        """
        if self._lists.window:
            return self._lists.window
        if len(candidates) < 2:
            return 2

        # most lists fit
        everyone = list(range(len(candidates)))
        try:
            self._listwise_prompt(query, candidates, everyone, reading)
        except PromptTooLong:
            return self._window_that_fits(query, candidates, reading)
        return len(candidates)

    def _window_that_fits(self, query, candidates, reading: dict) -> int:
        """How many candidates fit into one prompt whichever they are, of a list that does not fit; with a warning."""
        # what the question takes without candidates follows from one and two short ones
        once = self._listwise_prompt(query, ["."], [0], reading).length
        twice = self._listwise_prompt(query, ["."], [0, 0], reading).length
        frame = 2 * once - twice

        lengths = []
        for index in range(len(candidates)):
            lengths.append(self._listwise_prompt(query, candidates, [index], reading).length)

        # a number of more digits, or a seam, is a token or two
        digits = len(str(len(candidates)))
        costs = sorted((length - frame + digits for length in lengths), reverse=True)
        limit = min(self.processor.max_length, self.processor.tokenizer.model_max_length)

        # so few that the longest of them fit together
        window = len(costs) - 1
        while window and frame + sum(costs[:window]) + digits > limit:
            window -= 1

        if window < 2:
            raise ValueError(
                f"two candidates do not fit into the limit of {limit} tokens; lower the resolution, shorten the texts "
                "or raise `max_length`."
            )
        warnings.warn(
            f"{len(candidates)} candidates do not fit into one prompt of {limit} tokens; windows of {window} are "
            "put in order one after the other, and scores are places in the list.",
            stacklevel=4,
        )
        return window

    def _log_probabilities_of(self, query, candidates, indices: list[int], batch_tokens: int, reading: dict):
        """Log-probabilities that the candidates of these indices, shown in this order, are the best of them."""
        entry = self._listwise_prompt(query, candidates, indices, reading)
        return self._log_probabilities_of_numbers(entry, len(indices), batch_tokens)

    def _listwise_prompt(self, query, candidates, indices: list[int], reading: dict, suffix=LISTWISE_ANSWER):
        """The question about the candidates of these indices, in this order; its answer is a number."""
        # errors call a candidate by the number that the caller knows
        shown = [candidates[i] for i in indices]
        names = [f"candidate {i}" for i in indices]
        messages = self.processor.rerank_messages(
            query, shown, "listwise", names, benchmark=reading["benchmark"], instruction=reading["instruction"]
        )
        (entry,) = self.processor.prepare(
            [messages], suffix=suffix, names=["query and candidates"], resolution=reading["resolution"]
        )
        return entry

    def _log_probabilities_of_numbers(self, entry, count: int, batch_tokens: int) -> torch.Tensor:
        """Log-probabilities `[count]` of the numbers 1 to `count` as the answer, float64.

        Numbers of several digits are several tokens: the probability of each is the product of its tokens', each among
        those that may follow there (another digit, or the closing bracket).
        """
        answers = self._number_tokens(count)
        rivals = rival_tokens(answers)
        if not rivals:  # a single candidate
            return torch.zeros(count, dtype=torch.float64)

        # one prompt for each beginning of a number after which several tokens may come
        prompts = [replace(entry, written=(*entry.written, *beginning)) for beginning in rivals]
        columns = sorted(set().union(*rivals.values()))
        logits = self._next_logits(prompts, columns, batch_tokens, share_prefix=True, show_progress=False)

        # beginning of a number -> the log-probability of each token that may come next
        chances = {}
        for row, (beginning, tokens) in zip(logits, rivals.items()):
            is_rival = torch.isin(torch.tensor(columns), torch.tensor(tokens))
            log_softmax = row[is_rival].double().log_softmax(dim=0)
            chances[beginning] = dict(zip(tokens, log_softmax.tolist()))

        log_probabilities = [log_probability(answer, chances) for answer in answers]
        return torch.tensor(log_probabilities, dtype=torch.float64)

    def _number_tokens(self, count: int) -> list[list[int]]:
        """Ids of `1)`, `2)`, ... as they stand after the forced prefix."""
        tokenizer = self.processor.tokenizer
        prefix = tokenizer(LISTWISE_ANSWER, add_special_tokens=False)["input_ids"]

        # with the prefix before it, a number may be other tokens than by itself
        answers = []
        for number in range(1, count + 1):
            ids = tokenizer(f"{LISTWISE_ANSWER}{number})", add_special_tokens=False)["input_ids"]
            if ids[: len(prefix)] != prefix:
                raise ValueError(f"the tokenizer joins {LISTWISE_ANSWER!r} with the number after it; use 'pointwise'.")
            answers.append(ids[len(prefix) :])
        return answers

    def pick(
        self, query, candidates, resolution=None, benchmark: str | None = None, instruction: str | None = None
    ) -> int | None:
        """The candidate that the model names in an answer that it writes, the procedure released with UniME-V2.

        Args:
            query, candidates, resolution, benchmark, instruction: as in [`~UniMERerankerForCausalLM.rank`].

        Returns:
            `int`: its index, or None where the answer names no candidate.
        """
        reading = {"resolution": resolution, "benchmark": benchmark, "instruction": instruction}
        index, _ = self._picked(query, candidates, reading)
        return index

    def _picked(self, query, candidates, reading: dict) -> tuple[int | None, str]:
        """The index of the candidate that a written answer names, or None, and the answer."""
        if self._lists.turn is not None:
            raise ValueError(
                f"the preset {self.processor.preset!r} writes whole orders, not a number; rank by 'listwise'."
            )
        everyone = list(range(len(candidates)))

        # candidates are numbered from one in the prompt
        answer = self._generate(self._listwise_prompt(query, candidates, everyone, reading, suffix=""))
        number = re.search(r"\((\d+)\)", answer)
        index = int(number[1]) - 1 if number else -1
        return (index if index in everyone else None), answer

    def _order_by_generation(self, query, candidates, reading: dict) -> list[int]:
        """The candidate that the model names in its answer, then the others in their order."""
        index, answer = self._picked(query, candidates, reading)

        order = list(range(len(candidates)))
        if index is None:
            warnings.warn(
                f"the answer {answer.strip()[:80]!r} names none of {len(candidates)} candidates; their order stays.",
                stacklevel=3,
            )
        else:
            order.insert(0, order.pop(index))
        return order

    def _generate(self, entry, new_tokens: int = 128) -> str:
        """The model's answer to a prompt, of at most that many tokens."""
        with self._inference():
            batch = self.processor.collate([entry], padding_side="left").to(self.device)
            arguments = inspect.signature(self.vlm.forward).parameters  # `generate` refuses what the VLM does not name
            batch = {key: value for key, value in batch.items() if key in arguments}

            token_ids = self.vlm.generate(
                **batch,
                generation_config=self.generation_config,
                max_new_tokens=new_tokens,
                do_sample=False,
                use_cache=True,
            )

        # what comes back begins with the prompt
        answer_ids = token_ids[0, batch["input_ids"].shape[1] :]
        return self.processor.tokenizer.decode(answer_ids, skip_special_tokens=True)


__all__ = ["ListRanking"]
