"""Reading text files: UTF-8 or a clear error. Knows nothing of tokens."""

from pathlib import Path


def read_text(path: Path) -> str:
    """A file's text, with \n for every end of line. FileNotFoundError, or ValueError that names the file and the first
    byte that is not UTF-8 text."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    data = path.read_bytes()
    zero = data.find(b"\0")
    if zero >= 0:
        raise ValueError(f"{path} is binary, not text: byte {zero} is 0x00")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}") from error
