"""Jobs whose files were damaged or whose pictures changed: nothing is mixed, nothing is older than its inputs."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import picture
from safetensors.numpy import load_file, save_file
from test_eval_jobs import Oracle, Pretender
from tqdm import tqdm

from unime.commands.encode import encode
from unime.data.copies import identities_of, near_pairs
from unime.data.schema import Example, Item
from unime.eval.copies import join_copies
from unime.eval.rerank import run_rerank
from unime.eval.runner import read_result, run_benchmark
from unime.eval.tasks import Task
from unime.jobs.checks import check_options, fits
from unime.jobs.embedding import Embedder, item_name
from unime.jobs.reranking import Reranker
from unime.jobs.shards import check_manifest, read_errors, read_job, run_job
from unime.mining.pipeline import Mining, MiningConfig
from unime.mining.pools import Pool


# damaged shards
def doubled(rows):
    if "bad" in rows:
        raise ValueError("this row is bad")
    return {"value": np.array([2.0 * int(row) for row in rows], np.float32)}


def run(out, calls=None, rows=("0", "1", "bad", "3", "4")):
    def work(part):
        if calls is not None:
            calls.append(list(part))
        return doubled(part)

    run_job(out, rows, work, {"k": 1}, shard_size=2)
    return read_job(out)["value"].tolist()


def cut(path):
    path.write_bytes(path.read_bytes()[:60])


def short(path):
    arrays = load_file(path)
    save_file({name: array[:-1] for name, array in arrays.items()}, path)


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("rank, rows, shown", [(0, 15, True), (1, 9, False)])
def test_each_process_counts_its_own_rows_and_the_first_shows_them(rank, rows, shown, tmp_path, monkeypatch):
    bars = []

    class Bar(tqdm):
        def __init__(self, **options):
            bars.append(self)
            self.options = options
            self.counts = []
            super().__init__(**{**options, "disable": True})

        def update(self, count):
            self.counts.append(count)

    monkeypatch.setattr("unime.jobs.shards.tqdm", Bar)
    numbers = [str(number) for number in range(24)]
    run_job(tmp_path, numbers, doubled, {}, shard_size=9, rank=rank, world_size=2)

    # of three shards, the last has six rows
    [bar] = bars
    assert bar.options["total"] == sum(bar.counts) == rows and bar.options["initial"] == 0
    assert bar.options.get("disable", False) is not shown


DAMAGE = {
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "text": lambda path: path.write_text("[]"),
    "a row short": short,
    "a bit flipped": flipped,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("number", [0, 2])
def test_a_damaged_shard_is_named_and_made_again(damage, number, tmp_path, capsys):
    assert run(tmp_path) == [0, 2, 6, 8]
    path = tmp_path / f"rows-{number:09d}.safetensors"
    whole = path.read_bytes()
    DAMAGE[damage](path)
    with pytest.raises(ValueError, match=rf"rows-{number:09d}.*Run the job again: it makes this shard anew"):
        read_job(tmp_path)
    calls = []
    assert run(tmp_path, calls) == [0, 2, 6, 8] and path.read_bytes() == whole
    assert f"rows-{number:09d}.safetensors" in capsys.readouterr().err
    assert {row for part in calls for row in part} == set(["0", "1"] if number == 0 else ["bad", "3"])


@pytest.mark.parametrize("damage", ["cut", "empty", "zeroed", "text"])
def test_damaged_manifests_and_lists_of_errors_are_made_again(damage, tmp_path, capsys):
    run(tmp_path)
    for name in ("manifest.json", "rows-000000002.errors.json"):
        DAMAGE[damage](tmp_path / name)
        with pytest.raises(ValueError, match=name.replace("000000002.errors", "000000002")[:10]):
            read_job(tmp_path)
        assert run(tmp_path) == [0, 2, 6, 8]
        assert read_errors(tmp_path) == [{"row": 2, "key": "bad", "reason": "this row is bad"}]
        assert "rows-000000002" in capsys.readouterr().err or name == "manifest.json"


def test_a_shard_of_another_job_does_not_slip_in(tmp_path):
    run(tmp_path / "a")
    run(tmp_path / "b", rows=("5", "6", "7", "8", "9"))
    os.replace(tmp_path / "b" / "rows-000000000.safetensors", tmp_path / "a" / "rows-000000000.safetensors")
    assert run(tmp_path / "a") == [0, 2, 6, 8]
    (tmp_path / "a" / "manifest.json").write_bytes(b"")
    assert run(tmp_path / "a", rows=("5", "6", "7", "8", "9")) == [10, 12, 14, 16, 18], "not one old shard"


def test_a_full_disk_is_no_rows_fault(tmp_path):
    def work(rows):
        raise ValueError("the picture cannot be read") from OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ValueError, match="the picture"):
        run_job(tmp_path, ["a", "b"], work, {}, spare=True)
    assert not list(tmp_path.glob("*.errors.json"))


# changed pictures
def write_pictures(folder, seed):
    """Four pictures whose files have one size and one time, whatever they show."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number in range(4):
        path = folder / f"{number}.bmp"
        picture(10 * seed + number, (32, 32)).save(path)
        os.utime(path, ns=(0, 0))
        paths.append(str(path))
    return paths


class Seeing(Pretender):
    """Embeds a picture as its first pixels, and dies at the second shard while it may."""

    deadly = False

    def __init__(self):
        super().__init__("seeing", None)

    def settings(self):
        return {"model": "seeing@0"}

    def encode(self, items, role, benchmark=None, of_training=False):
        if self.deadly and self.asked:
            raise KeyboardInterrupt
        self.asked += items
        return np.stack([first_pixels(item.image) for item in items])


def first_pixels(path):
    from unime.images_unime import open_image

    pixels = np.asarray(open_image(path), np.float32).ravel()[:16]
    return pixels / np.linalg.norm(pixels)


def test_results_are_never_older_than_their_pictures(tmp_path):
    paths = write_pictures(tmp_path / "photos", 1)
    items = [Item(image=path) for path in paths]
    corpus = [Item(image=path) for path in write_pictures(tmp_path / "corpus", 1)]
    task = Task("t", "Retrieval", items, corpus, None, [[0], [1], [2], [3]])
    before = run_benchmark("own", [task], Seeing(), tmp_path / "out", tmp_path)
    assert read_result(before)["tasks"]["t"]["score"] == 1.0
    write_pictures(tmp_path / "photos", 2)
    after = run_benchmark("own", [task], Seeing(), tmp_path / "out", tmp_path)
    fresh = run_benchmark("own", [task], Seeing(), tmp_path / "fresh", tmp_path)
    assert after != before and read_result(after)["tasks"] == read_result(fresh)["tasks"]
    assert read_result(after)["tasks"]["t"]["ranks"] != [1, 1, 1, 1]


@pytest.mark.parametrize("damage", ["cut", "empty", "zeroed", "text"])
@pytest.mark.parametrize("name", ["results.json", "top.safetensors"])
def test_a_damaged_result_is_made_again(damage, name, tmp_path, capsys):
    items = [Item(image=path) for path in write_pictures(tmp_path / "photos", 1)]
    task = Task("t", "Retrieval", items, items, None, [[0], [1], [2], [3]])
    path = run_benchmark("own", [task], Seeing(), tmp_path / "out", tmp_path)
    whole = path.with_name(name).read_bytes()
    DAMAGE[damage](path.with_name(name))
    judge = Oracle({(repr(item.as_input()), repr(item.as_input())) for item in items})
    with pytest.raises(ValueError, match=name):
        run_rerank(path, [task], judge, 1, tmp_path)
    assert run_benchmark("own", [task], Seeing(), tmp_path / "out", tmp_path) == path
    assert path.with_name(name).read_bytes() == whole and name in capsys.readouterr().err

    # the reranker's own
    ranked = run_rerank(path, [task], judge, 1, tmp_path)
    whole = ranked.read_bytes()
    DAMAGE[damage](ranked)
    assert run_rerank(path, [task], judge, 1, tmp_path) == ranked and ranked.read_bytes() == whole


@pytest.mark.parametrize("update", [False, True])
def test_a_resumed_encode_never_mixes(update, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "index.npz"
    write_pictures(folder, 1)
    killed = Seeing()
    killed.deadly = True
    with pytest.raises(KeyboardInterrupt):
        encode([str(folder)], killed, out, shard_size=2, update=update)
    paths = write_pictures(folder, 2)
    encode([str(folder)], Seeing(), out, shard_size=2, update=update)
    for seed in (2, 3):
        paths = write_pictures(folder, seed)
        index = encode([str(folder)], Seeing(), out, shard_size=2, update=True).index
        assert np.allclose(index.embeddings, np.stack([first_pixels(path) for path in paths])), seed
    assert not (tmp_path / "index.npz.parts").exists()


def test_a_killed_encode_goes_on_and_a_failed_one_is_no_obstacle(tmp_path):
    write_pictures(tmp_path / "photos", 1)
    killed, second = Seeing(), Seeing()
    killed.deadly = True
    with pytest.raises(KeyboardInterrupt):
        encode([str(tmp_path / "photos")], killed, tmp_path / "x.npz", shard_size=2)
    assert len(encode([str(tmp_path / "photos")], second, tmp_path / "x.npz", shard_size=2).index.names) == 4
    assert len(second.asked) == 2, "what was finished is not embedded again"

    class Other(Seeing):
        def settings(self):
            return {"model": "other@0"}

    killed.asked = []
    with pytest.raises(KeyboardInterrupt):
        encode([str(tmp_path / "photos")], killed, tmp_path / "y.npz", shard_size=2)
    assert encode([str(tmp_path / "photos")], Other(), tmp_path / "y.npz", shard_size=2).index.about["settings"] == {
        "model": "other@0"
    }


def test_a_model_is_its_content_whatever_it_is_called(tmp_path):
    class Renamed(Seeing):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def settings(self):
            return {"model": self.name}

    old, new, other = [f"{name}@{digit * 16}" for name, digit in (("old", "1"), ("new", "1"), ("old", "2"))]
    write_pictures(tmp_path / "photos", 1)
    killed, second = Renamed(old), Renamed(new)
    killed.deadly = True
    with pytest.raises(KeyboardInterrupt):
        encode([str(tmp_path / "photos")], killed, tmp_path / "x.npz", shard_size=2)
    encode([str(tmp_path / "photos")], second, tmp_path / "x.npz", shard_size=2)
    assert len(second.asked) == 2, "the shard of the old name counts"

    third = Renamed(old)
    encode([str(tmp_path / "photos")], third, tmp_path / "x.npz", update=True)
    assert not third.asked
    with pytest.raises(ValueError, match="cannot be updated: its settings"):
        encode([str(tmp_path / "photos")], Renamed(other), tmp_path / "x.npz", update=True)

    # nested, as the manifests of mining are
    (tmp_path / "job").mkdir()
    check_manifest(tmp_path / "job" / "m.json", {"settings": {"queries": [{"model": old}], "k": (1, 2)}})
    check_manifest(tmp_path / "job" / "m.json", {"settings": {"queries": [{"model": new}], "k": (1, 2)}})
    with pytest.raises(ValueError, match=f"{old}.* there, .*{other}"):
        check_manifest(tmp_path / "job" / "m.json", {"settings": {"queries": [{"model": other}], "k": (1, 2)}})


def test_an_item_is_its_content_wherever_it_lies(tmp_path):
    (path,) = write_pictures(tmp_path / "a", 1)[:1]
    (copy,) = write_pictures(tmp_path / "b", 1)[:1]
    (other,) = write_pictures(tmp_path / "c", 2)[:1]
    names = [
        item_name(Item("t", image), root)
        for image, root in zip((path, copy, other), map(os.path.dirname, (path, copy, other)))
    ]
    assert names[0] == names[1] != names[2]


# copies
@pytest.fixture
def copies(tmp_path):
    """Two pictures, and a copy of the first in another format."""
    picture(1).save(tmp_path / "a.png")
    picture(1).save(tmp_path / "copy.bmp")
    picture(2).save(tmp_path / "b.png")
    return [Item(image=str(tmp_path / name)) for name in ("a.png", "copy.bmp", "b.png")]


def test_a_copy_of_the_positive_is_no_other_candidate(copies):
    first, copy, other = copies
    rows = [
        Example(Item("q"), first, dataset="d"),
        Example(Item("r"), copy, dataset="d"),
        Example(Item("s"), other, dataset="d"),
        Example(copy, Item("what a shows"), dataset="d"),
        Example(first, Item("what else a shows"), dataset="d"),
    ]
    pool = Pool.of(rows)
    assert list(pool.candidates) == [first, other, Item("what a shows"), Item("what else a shows")]
    assert [pair.positive for pair in pool.pairs] == [0, 0, 1, 2, 3] and pool.pairs[1].item == copy
    excluded = [pool.excluded(query) for query in range(5)]
    assert excluded == [[0], [0], [1], [0, 2, 3], [0, 2, 3]], "copies of a query have each other's positives"
    assert pool.first_copies.tolist() == [0, 1, 2, 3, 3]


@pytest.mark.parametrize("near_copies", [None, 0])
def test_what_a_row_names_as_right_too_is_no_negative_of_it(copies, near_copies):
    first, copy, other = copies
    rows = [
        Example(Item("q"), Item("x"), dataset="d", other_positives=[copy, Item("in no other row")]),
        Example(Item("r"), first, dataset="d"),
        Example(Item("s"), other, dataset="d"),
    ]
    pool = Pool.of(rows, near_copies)
    assert list(pool.candidates) == [Item("x"), first, other]
    assert [pool.excluded(query) for query in range(3)] == [[0, 1], [1], [2]]


def test_near_copies_are_one_where_they_are_asked_for(tmp_path):
    from PIL import Image

    smooth = picture(5, (8, 6)).resize((320, 240), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "a.png")
    smooth.resize((160, 120)).save(tmp_path / "small.jpg", quality=80)
    picture(6, (8, 6)).resize((320, 240), Image.Resampling.BICUBIC).save(tmp_path / "b.png")
    first, small, other = (Item(image=str(tmp_path / name)) for name in ("a.png", "small.jpg", "b.png"))
    exact, near = identities_of([first, small, other]), identities_of([first, small, other], near=12)
    assert len(set(exact.values())) == 3
    assert near[first] == near[small] == exact[first] and near[other] == exact[other]


def test_near_pairs_are_all_pairs_within_the_distance():
    rng = np.random.default_rng(0)
    hashes = rng.random((60, 24)) < 0.5
    hashes[30:] = hashes[:30] ^ (rng.random((30, 24)) < 0.08)
    for near in (0, 1, 3):
        pairs = {tuple(sorted(pair)) for pair in near_pairs(hashes, near)}
        distances = (hashes[:, None] != hashes[None]).sum(2)
        rows, columns = np.nonzero(np.triu(distances <= near, 1))
        assert pairs == set(zip(rows.tolist(), columns.tolist())) and (pairs or not near)


def test_copies_among_candidates_count_once(copies):
    first, copy, other = copies
    queries = [Item("q"), Item("r")]
    of_all = join_copies(Task("t", "Retrieval", queries, [other, first, copy], None, [[1], [0]]))
    assert of_all.corpus == [other, first] and of_all.candidates is None and of_all.relevant == [[1], [0]]
    assert of_all.notes == ["1 candidates are copies of others under other names, and count once"]
    own = Task("t", "Retrieval", queries, copies, [[1, 2, 0], [2, 0, 1]], [[0], [1, 2]], gains=[[1.0], [1.0, 2.0]])
    joined = join_copies(own)
    assert joined.candidates == [[0, 1], [1, 0]] and joined.relevant == [[0], [1]]
    assert joined.gains == [[1.0], [2.0]]
    unchanged = Task("t", "Retrieval", queries, [first, other], None, [[0], [1]])
    assert join_copies(unchanged) is unchanged


# names from data
def test_clusters_stay_in_their_folder(backbone, tmp_path):
    names = ["../../escaped", "..", "a/b", "a%2Fb", "plain"]
    with open(tmp_path / "rows.jsonl", "w") as file:
        for number in range(20):
            row = {"query": f"q {number}", "positive": f"p {number}", "dataset": names[number % 5]}
            file.write(json.dumps(row) + "\n")
    config = MiningConfig(
        data=str(tmp_path / "rows.jsonl"), out=str(tmp_path / "home" / "out"), embedder=str(backbone), cluster_size=2
    )
    before = set(tmp_path.iterdir()) | {tmp_path / "home"}
    mining = Mining(config)
    mining.embed()
    mining.saha()
    assert set(tmp_path.iterdir()) == before and os.listdir(tmp_path / "home") == ["out"]
    files = {path.name for path in (mining.out / "saha").glob("*_hard_negatives.json")}
    assert len(files) == 5 and "plain_hard_negatives.json" in files

    from unime.data.readers import read_clusters

    assert set(read_clusters(mining.out / "saha")["dataset"]) == set(names)
    assert set(read_clusters(mining.out / "saha", subsets=["a/b"])["dataset"]) == {"a/b"}

    # a file that was cut short is made again
    path = mining.out / "saha" / "plain_hard_negatives.json"
    whole = path.read_bytes()
    cut(path)
    Mining(config).saha()
    assert path.read_bytes() == whole


# what people write
@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Embedder("m", resolutoin=336), "options of `encode` has no 'resolutoin'; did you mean 'resolution'"),
        (lambda: Embedder("m", batch_tokens="many"), "'batch_tokens' is 'many'; it takes a whole number"),
        (lambda: Embedder("m", role="query"), "has no 'role'"),
        (lambda: Reranker("m", rounds=True), "'rounds' is True; it takes a whole number"),
        (lambda: Reranker("m", wieght=1), "did you mean 'weight'"),
        (lambda: Reranker("m", "listwise", sum_variants=True), "has no 'sum_variants'"),
        (lambda: MiningConfig(judge_options={"answer": 1}), "`judge_options` has no 'answer'"),
        (lambda: MiningConfig(server="http://x", server_options={"tiemout": 1}), "did you mean 'timeout'"),
        (lambda: MiningConfig(embedder_options={"x": 1}), "`embedder_options` has no 'x'"),
        (lambda: MiningConfig(embedder_options="{"), "`embedder_options` is not JSON"),
        (lambda: MiningConfig(embed_shard=0), "`embed_shard` is 0; it must be at least 1"),
        (lambda: MiningConfig(embedder=["m"]), r"`embedder` is \['m'\]; it takes a text"),
        (lambda: MiningConfig(subsets="VQA"), "`subsets` is 'VQA'; it takes a list, each entry a text"),
        (lambda: MiningConfig(name="../x"), "`name` is '../x'; it is the name of a file"),
    ],
)
def test_mistyped_options_and_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_options_of_all_kinds_are_taken():
    assert Embedder("m", resolution=336, truncate_dim=None, max_length=7).settings
    assert Reranker("m", "fused", weight=1, answer_format="multiple_choice").options["weight"] == 1
    config = MiningConfig(margin=0.2, delta=0.5, judge_options='{"repetition_penalty": 1.05}')
    assert (config.margin, config.delta) == ("0.2", "0.5")
    assert fits([1, 2], list[int]) and not fits([True], list[int]) and fits({"a": 1}, dict | str | None)
    check_options("x", {"a": None}, [lambda a=1: a])


ENDING = """
import atexit
import sys
import torch.distributed
from unime.jobs.ending import leave_group_at_exit

def report():
    print("in a group" if torch.distributed.is_initialized() else "left")

atexit.register(report)  # what is registered first runs last
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
if sys.argv[2] == "succeeds":
    leave_group_at_exit()
"""


@pytest.mark.parametrize("outcome, state", [("succeeds", "left"), ("fails", "in a group")])
def test_a_process_that_has_done_its_work_leaves_its_group(outcome, state, tmp_path):
    command = [sys.executable, "-c", ENDING, str(tmp_path / "store"), outcome]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split("\n")[0] == state
