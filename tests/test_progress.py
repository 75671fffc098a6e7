"""What is shown and counted while something runs."""

import subprocess
import sys


def test_a_process_is_not_charged_with_the_memory_of_the_one_that_started_it() -> None:
    """The child imports the same, so that what it uses is what this process used before it took 1 GB more."""
    child = "from alignkit.progress import peak_memory_bytes; print(peak_memory_bytes())"
    script = f"""if True:
        import subprocess
        import sys
        from alignkit.progress import peak_memory_bytes
        before, ballast = peak_memory_bytes(), b"x" * 2**30
        done = subprocess.run([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE, check=True)
        print(before, int(done.stdout), peak_memory_bytes() - before, len(ballast))
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    before, of_child, more, ballast = map(int, done.stdout.split())
    assert ballast == 2**30 and more > 0.9 * ballast
    assert abs(of_child - before) < 2**26
