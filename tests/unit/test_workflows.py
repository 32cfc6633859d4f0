"""What the workflows, and the one that users are shown, must not lose again."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
OURS = {path.name: path.read_text("utf-8") for path in (ROOT / ".github" / "workflows").glob("*")}
(SHOWN,) = re.findall(
    r"^```yaml\n(on:\n.*?)^```$",
    (ROOT / "docs" / "ci.md").read_text("utf-8"),
    re.MULTILINE | re.DOTALL,
)
ALL = OURS | {"docs/ci.md": SHOWN}


def steps(text):
    return [step for job in yaml.safe_load(text)["jobs"].values() for step in job["steps"]]


def using(text, action):
    return [step for step in steps(text) if step.get("uses", "").startswith(f"{action}@")]


@pytest.mark.parametrize("name", ALL)
def test_results_are_kept_although_their_folder_is_a_hidden_one(name):
    (upload,) = using(ALL[name], "actions/upload-artifact")
    assert ".moeperf/" in upload["with"]["path"].split()
    assert upload["with"]["include-hidden-files"] is True
    assert upload["with"]["if-no-files-found"] == "error"
    assert upload["if"] == "always()"


@pytest.mark.parametrize("name", OURS)
def test_actions_are_pinned_to_commits_whose_versions_are_told(name):
    used = re.findall(r"\buses: (.+)", OURS[name])
    assert used
    assert [each for each in used if not re.fullmatch(r"\S+@[0-9a-f]{40} # v[\d.]+", each)] == []


@pytest.mark.parametrize("name", ALL)
def test_no_shell_reads_what_somebody_else_typed(name):
    typed = [step["run"] for step in steps(ALL[name]) if "run" in step]
    assert typed
    assert [line for line in typed if "${{" in line] == []


def test_the_cached_engine_is_of_the_python_that_it_links_to():
    (restore,) = using(OURS["ci.yml"], "actions/cache/restore")
    (save,) = using(OURS["ci.yml"], "actions/cache/save")
    assert "steps.python.outputs.python-version" in restore["with"]["key"]
    assert save["with"] == {
        "path": restore["with"]["path"],
        "key": "${{ steps.cache.outputs.cache-primary-key }}",
    }
