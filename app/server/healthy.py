"""Check the app on this machine: `python -m app.server.healthy` ends with 0 if it is healthy.

The address is taken from the environment, as the app itself does.
"""

import sys
import urllib.request

from app.server.settings import SettingsError, read

TIMEOUT_S = 4.0


def main() -> int:
    try:
        settings = read([])
        host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
        host = f"[{host}]" if ":" in host else host
        with urllib.request.urlopen(f"http://{host}:{settings.port}/healthz", timeout=TIMEOUT_S) as answer:
            print(answer.read().decode())
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"The app is not healthy: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
