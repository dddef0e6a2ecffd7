"""How a server says no."""


class Refusal(Exception):
    """A request that is not answered, for a reason that its sender can do something about.

    Args:
        message (`str`): what is wrong, and what to do.
        status (`int`, defaults to 400): of HTTP.
        headers (`dict`, *optional*): of the answer.
        code (`str`, *optional*): by which programs tell it apart, such as `"model_not_found"`.
    """

    def __init__(self, message: str, status: int = 400, headers: dict | None = None, code: str | None = None):
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.code = code
