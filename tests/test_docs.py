"""Prose that names files and functions stays true, and no file tells where it was made."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
PACKAGE = REPO / "magistral_jax"


def read(name: str) -> str:
    assert (REPO / name).is_file(), f"{name} is missing"
    return (REPO / name).read_text("utf-8")


# ── the README's tree ──────────────────────────────────────────────────────────────────────────

BRANCH = re.compile(r"^(?P<indent>(?:│ {3}| {4})*)(?:├── |└── )(?P<name>\S+)")


def tree_of(markdown: str) -> list[str]:
    """Paths drawn in the fenced block that begins with "magistral-jax/"; folders end with "/"."""
    drawing = re.search(r"^```\w*\nmagistral-jax/.*?^```$", markdown, re.MULTILINE | re.DOTALL)
    assert drawing, "README.md has no fenced tree whose first line begins with magistral-jax/"
    paths: list[str] = []
    folders: list[str] = []
    for line in drawing[0].splitlines()[2:-1]:
        branch = BRANCH.match(line)
        if branch is None:
            assert not line.strip("│ "), f"README.md, in the tree, a line that is no branch: {line}"
            continue
        depth = len(branch["indent"]) // 4
        assert depth <= len(folders), f"README.md, in the tree, too deep: {line}"
        del folders[depth:]
        paths.append("".join(folders) + branch["name"])
        if branch["name"].endswith("/"):
            folders.append(branch["name"])
    return paths


def test_a_tree_is_read_as_drawn():
    drawing = """
```text
magistral-jax/
├── pyproject.toml    settings
├── magistral_jax/
│   ├── batch/        verdicts to batches
│   │   └── pack.py
│   │
│   └── types.py      what travels
└── launch/
    └── demo.sh
```
"""
    assert tree_of(drawing) == [
        "pyproject.toml",
        "magistral_jax/",
        "magistral_jax/batch/",
        "magistral_jax/batch/pack.py",
        "magistral_jax/types.py",
        "launch/",
        "launch/demo.sh",
    ]


def test_readme_tree_names_every_file_of_the_package():
    drawn = set(tree_of(read("README.md")))
    # A room's __init__.py says nothing that its line in the tree does not.
    files = {p.relative_to(REPO).as_posix() for p in PACKAGE.rglob("*.py")}
    rooms = {f for f in files if f.endswith("/__init__.py") and f.count("/") > 1}
    missing = sorted(files - rooms - drawn)
    assert not missing, f"README.md's tree does not name {missing}"


def test_readme_tree_names_nothing_that_is_not_there():
    drawn = tree_of(read("README.md"))
    assert len(set(drawn)) == len(drawn), "README.md's tree names something twice"
    lost = [
        p for p in drawn if not ((REPO / p).is_dir() if p.endswith("/") else (REPO / p).is_file())
    ]
    assert not lost, f"README.md's tree names {lost}, which do not exist"


# ── the paper map ──────────────────────────────────────────────────────────────────────────────

REFERENCE = re.compile(r"(?P<file>[\w./-]+\.py):(?P<name>[A-Za-z_][\w.]*\w|[A-Za-z_])")


def names_defined(body: list[ast.stmt], prefix: str = "") -> set[str]:
    """Functions, classes, methods and assigned names: "policy_loss", "Backlog.take", "LAW"."""
    names: set[str] = set()
    for node in body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(prefix + name)
            case ast.ClassDef(name=name, body=inner):
                names |= {prefix + name} | names_defined(inner, f"{prefix}{name}.")
            case ast.Assign(targets=targets):
                names |= {prefix + t.id for t in targets if isinstance(t, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(prefix + name)
    return names


def is_true(reference: re.Match[str]) -> bool:
    """Whether the file, seen from the repository or the package, defines the name."""
    for folder in (REPO, PACKAGE):
        path = folder / reference["file"]
        if path.is_file():
            return reference["name"] in names_defined(ast.parse(path.read_text("utf-8")).body)
    return False


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`types.py:Group`", True),
        ("`magistral_jax/types.py:Group.is_diverse`.", True),
        ("types.py:Group.rewards_G, and more", True),
        ("types.py:Outcome", True),
        ("types.py:Grope", False),
        ("types.py:Group.is_uniform", False),
        ("types.py:is_diverse", False),
        ("tipes.py:Group", False),
    ],
)
def test_a_reference_is_true_if_the_file_defines_the_name(text, expected):
    references = list(REFERENCE.finditer(text))
    assert [is_true(r) for r in references] == [expected]


def test_every_function_in_the_paper_map_exists():
    references = list(REFERENCE.finditer(read("docs/PAPER.md")))
    assert references, "docs/PAPER.md names no file:function"
    wrong = sorted({r[0] for r in references if not is_true(r)})
    assert not wrong, f"docs/PAPER.md names {wrong}, which do not exist"


# ── where files were made ──────────────────────────────────────────────────────────────────────

# Put together here, so that this file does not hold what it forbids.
FOLDERS = ["work", "root", "farm", "opt/wheels?", r"opt/\w*py" + "pi", r"home/\w+", r"Users/\w+"]
HOSTS = [
    *(
        "py" + r"pi\.org",
        "python" + r"hosted\.org",
        "npm" + r"js\.(?:org|com)",
        r"conda\.ana" + "conda",
    ),
    *(r"deb\.deb" + "ian", r"pytorch\.org/" + "whl", "extra-index-" + "url"),
]
TELLTALE = re.compile(
    "|".join([rf"(?<![\w.~}}-])/(?:{'|'.join(FOLDERS)})/", *HOSTS]).encode(), re.IGNORECASE
)


@pytest.mark.parametrize("folder", ["work", "root", "farm", "home/ada", "Users/ada", "opt/wheels"])
def test_a_path_of_a_machine_is_a_telltale(folder):
    assert TELLTALE.search(f"python /{folder}/main/x.py".encode())
    assert TELLTALE.search(f'"/{folder}/main/x.py"'.encode())
    assert not TELLTALE.search(f"see frame/{folder}/x.py".encode())


@pytest.mark.parametrize(
    "host", ["py" + "pi.org", "files.python" + "hosted.org", "--extra-index-" + "url"]
)
def test_a_host_of_packages_is_a_telltale(host):
    assert TELLTALE.search(f"from {host} comes".encode())


def test_no_committed_file_tells_where_it_was_made():
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=REPO, capture_output=True, check=True, timeout=60
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git repository here: nothing is committed")
    files = [REPO / name for name in listing.decode().split("\0") if name]
    found = [
        f"{path.relative_to(REPO)}: {match[0].decode()}"
        for path in files
        if path.is_file() and (match := TELLTALE.search(path.read_bytes()))
    ]
    assert not found, f"paths of a machine or hosts of packages: {found}"
