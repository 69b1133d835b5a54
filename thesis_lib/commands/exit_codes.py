"""What the exit code of `thesis` says."""

SOME_FAILED = 1         # some categories, pictures or notebooks; others went well
WRONG_INPUT = 2         # nothing could be done: the input or the data is wrong
DEFECT = 3              # of this program; its traceback is shown
INTERRUPTED = 130       # by Ctrl-C
CLOSED = 141            # as of a program that the signal SIGPIPE has ended
TEXT = ("exit codes: 0 all went well; 1 some categories, pictures or notebooks failed, others went well; 2 nothing "
        "could be done, the input or the data is wrong; 3 a defect of the program, its traceback is shown; 130 "
        "interrupted by Ctrl-C; 141 whoever read the output, such as head, has closed it")


def after(failed: int, well: int) -> int:
    """Of a command that went on after failures."""
    if not failed:
        return 0
    return SOME_FAILED if well else WRONG_INPUT
