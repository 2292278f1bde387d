"""The simulator is deterministic, and its checkers find known bugs."""

import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SIM = ROOT / "build" / "release" / "bin" / "cairn-sim"
PLANTED = ROOT / "build" / "plant" / "bin" / "cairn-sim"

# Each known bug, where it shows best, and within how many seeds it must be found; of the rare ones, from which
# seed on, so that it takes no longer here than it must.
PLANTS = {
    "ACK_BEFORE_FSYNC": ("all", 20),
    "VOTE_NOT_WRITTEN": ("elections", 20),
    "OWNER_WITHOUT_BARRIER": ("all", 50),
    "DEDUPE_IN_MEMORY": ("all", 20),
    "REFUSAL_WITHOUT_BARRIER": ("ownership", 600),
    "READ_WITHOUT_BARRIER": ("all", 50),
    "POSITION_REUSED": ("all", 20),
    "SNAPSHOT_SKIPS_EVENT": ("all", 20),
    "FORGOTTEN_STATE_KEPT": ("all", 20),
    "KEY_KEPT_AFTER_LOSS": ("all", 100),
    "REWRAP_LOST": ("forgetting", 400),
    "STATE_KEPT_AFTER_LOSS": ("ownership", 800),
    "REJECTION_NOT_RECORDED": ("all", 20),
    "APPLIED_AHEAD": ("all", 20),
    "FINGERPRINT_IGNORED": ("all", 20),
    "EXPECTATION_IGNORED": ("all", 20),
    "LAST_EVENT_LOST": ("all", 20),
    "LOSS_NOTICED_LATE": ("ownership", 100, 2751),
    "SNAPSHOT_AHEAD": ("all", 20),
    "REQUEST_ID_REUSED": ("all", 400),
    "CONFIGURATION_FORGOTTEN": ("placement", 100),
    "VOID_STATE_DECIDED_ON": ("rolling", 200, 201),
    "DAMAGE_IGNORED": ("rot", 50),
    "PROCESSOR_NOT_AWAITED": ("all", 50),
    "EVENT_SKIPPED": ("all", 20),
    "CURSOR_AHEAD": ("all", 50),
    "BEGIN_NOT_TOLD": ("all", 20),
    "REFUSED_ON_VOID_STATE": ("rolling", 100, 1951),
}


def run(binary, *arguments):
    done = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("seed", [1, 10, 42, 931, 50010, 202726, 402820])
def test_a_seed_gives_the_same_run_to_the_byte(seed):
    first, second = run(SIM, "--seed", seed), run(SIM, "--seed", seed)
    assert first == second
    assert re.search(r"trace [0-9a-f]{16}", first[1])


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_bug_is_found(plant):
    scenario, seeds, *first = PLANTS[plant]
    code, output = run(PLANTED, "--plant", plant, "--scenario", scenario, "--seed", *(first or [1]), "--runs", seeds)
    assert code != 0, f"not found within {seeds} seeds: {output}"
    assert "replay with: cairn-sim --seed" in output


def test_every_plant_is_tested():
    _, usage = run(PLANTED, "--help")
    assert set(re.findall(r"^      ([A-Z_]+)", usage, re.M)) == set(PLANTS)


def test_without_a_planted_bug_the_same_build_finds_none():
    code, output = run(PLANTED, "--scenario", "ownership", "--runs", 100)
    assert code == 0, output


def test_a_failing_seed_replays_and_gets_smaller():
    code, output = run(PLANTED, "--plant", "OWNER_WITHOUT_BARRIER", "--runs", 50)
    seed = re.search(r"--seed (\d+)", output).group(1)
    _, whole = run(PLANTED, "--plant", "OWNER_WITHOUT_BARRIER", "--seed", seed)
    code, small = run(PLANTED, "--plant", "OWNER_WITHOUT_BARRIER", "--seed", seed, "--minimize")
    assert code == 1 and "BROKEN" in whole and "BROKEN" in small
    assert small.count(" ms for ") <= whole.count(" ms for ")
