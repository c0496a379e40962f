"""JupyterLab in headless Chromium: what a reader of the course does, done by a program.

    with Lab(folder, ROOT / "nbs", ["1_core/05_distractor.ipynb"]) as lab, open_page() as page:
        lab.open(page, "1_core/05_distractor.ipynb")
        lab.run_all(page)
        print(lab.state(page))
"""
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync",
         "--disable-dev-shm-usage"]  # containers have little of it
SETTINGS = {  # what would cover the notebook or write beside the test
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}
# every cell of the notebook in front: what a cell without a run, or one that failed, looks like from the page
STATE = """() => {
    const notebook = window.jupyterapp.shell.currentWidget;
    const kernel = notebook.context.sessionContext.session?.kernel;
    const cells = notebook.content.widgets.filter(w => w.model.type === 'code' && w.model.sharedModel.source.trim());
    return {
        kernel: kernel ? kernel.status : 'none',
        ran: cells.map(w => w.model.executionCount),
        folded: cells.filter(w => w.inputHidden).map(w => w.model.sharedModel.source),
        open: cells.filter(w => !w.inputHidden).map(w => w.model.sharedModel.source),
        errors: cells.flatMap(w => w.model.sharedModel.outputs.filter(o => o.output_type === 'error')
            .map(o => `${o.ename}: ${o.evalue}`)),
    };
}"""


def chromium():
    "The browser to drive, or None: named by CHROMIUM, or one of the usual names on the PATH."
    named = os.environ.get("CHROMIUM")
    found = [shutil.which(name) for name in ([named] if named else ["chromium", "chromium-browser", "google-chrome"])]
    return next(filter(None, found), None)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def open_page():
    "A page of headless Chromium, closed in any case."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as driver:
        chrome = driver.chromium.launch(executable_path=chromium(), args=FLAGS, timeout=60_000)
        try:
            page = chrome.new_page(viewport={"width": 1400, "height": 1000})
            page.set_default_timeout(120_000)
            yield page
        finally:
            chrome.close()


class Lab:
    "A JupyterLab server of its own on a copy of some notebooks: none of the user's settings, nothing in the checkout."

    def __init__(
        self,
        folder,     # an empty folder; notebooks, settings and the log of the server go here
        root,       # folder of the course
        names,      # notebooks and folders in it that are copied, each to its own place
    ):
        self.folder, self.token, self.port = Path(folder), secrets.token_hex(16), free_port()
        self.work = self.folder / "nbs"
        for name in names:
            path, copy = Path(root) / name, self.work / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
        for name, content in SETTINGS.items():
            path = self.folder / "settings" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))

    def __enter__(self):
        places = {f"JUPYTER_{kind}_DIR": str(self.folder / kind.lower()) for kind in ("CONFIG", "RUNTIME", "DATA")}
        places |= {"JUPYTERLAB_SETTINGS_DIR": str(self.folder / "settings"),
                   "JUPYTERLAB_WORKSPACES_DIR": str(self.folder / "workspaces"),
                   "IPYTHONDIR": str(self.folder / "ipython")}
        env = {**os.environ, **places, "OMP_NUM_THREADS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
                   f"--port={self.port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={self.work}",
                   f"--IdentityProvider.token={self.token}", "--LabApp.expose_app_in_browser=True"]
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a test run that is told to stop cleans up, too
        self.log = open(self.folder / "server.log", "w")
        # a session of its own, so that the kernels can be ended with it
        self.server = subprocess.Popen(command, env=env, stdout=self.log, stderr=self.log, start_new_session=True)
        try:
            self.wait_for_server()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for sign in (signal.SIGTERM, signal.SIGKILL):  # the group holds the server's kernels as well
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.server.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.server.wait(10)
        self.log.close()

    def wait_for_server(self, timeout=120):
        end = time.monotonic() + timeout
        while time.monotonic() < end and self.server.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/status?token={self.token}", timeout=5).close()
                return
            time.sleep(0.3)
        raise RuntimeError("JupyterLab did not start:\n" + (self.folder / "server.log").read_text()[-2000:])

    def within(self, page, seconds, promise):
        "Wait for a promise of the page, but not for ever: Playwright's `evaluate` has no limit of its own."
        page.evaluate(f"""seconds => Promise.race([
            {promise}.then(() => null), new Promise(done => setTimeout(done, 1000 * seconds))])""", seconds)

    def open(self, page, name):
        "Open a notebook as by its address, and wait until its kernel is ready."
        page.goto(f"http://127.0.0.1:{self.port}/lab/tree/{name}?reset&token={self.token}")  # nothing else is open
        page.wait_for_function("name => window.jupyterapp?.shell?.currentWidget?.context?.path === name", arg=name)
        page.wait_for_function("() => window.jupyterapp.shell.currentWidget.context.isReady")
        page.wait_for_function(f"() => ({STATE})().kernel === 'idle'")

    def run_all(self, page, timeout=240):
        "Run every cell and wait: the command ends with the last cell, with the first error, or after `timeout` s."
        self.within(page, timeout, "window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_function(f"() => ({STATE})().kernel === 'idle'")

    def state(self, page):
        "Status of the kernel, execution count of every code cell (None: it did not run), and errors as text."
        return page.evaluate(STATE)

    def close(self, page):
        "Shut the kernel down, as a reader does before the next lesson."
        self.within(page, 60, "window.jupyterapp.shell.currentWidget.context.sessionContext.shutdown()")
