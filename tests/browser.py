"A real browser, driven over its DevTools protocol through two pipes: no package is needed, only Chromium."
import base64, fcntl, itertools, json, os, select, shutil, subprocess, tempfile, time
from contextlib import contextmanager

FLAGS = ('--headless=new --no-sandbox --use-angle=swiftshader --enable-unsafe-swiftshader --ignore-gpu-blocklist --no-first-run --disable-sync '
         '--disable-background-networking --disable-component-update --disable-quic --hide-scrollbars --remote-debugging-pipe').split()

def find_chromium():
    "Its path, or None."
    names = os.environ.get('CHROMIUM'), 'chromium', 'chromium-browser', 'google-chrome'
    return next(filter(None, (n and shutil.which(n) for n in names)), None)

@contextmanager
def chromium(width=1280, height=900):
    "Within: a `Page` of a fresh profile."
    ends = [(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10), os.close(fd))[0] for fd in os.pipe() + os.pipe()]   # clear of 3 and 4, which are the browser's
    hears, write, read, tells = ends
    def give(): os.dup2(hears, 3); os.dup2(tells, 4)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [find_chromium(), *FLAGS, f'--user-data-dir={profile}', f'--window-size={width},{height}', 'about:blank']
        process = subprocess.Popen(command, preexec_fn=give, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(hears); os.close(tells)
        try: yield Page(write, read, width, height)
        finally:
            process.kill(); process.wait()
            os.close(write); os.close(read)

class Page:
    "One tab. `errors` holds what its scripts threw or logged as errors, `requests` every address it asked for."
    def __init__(self, write, read, width, height):
        self._write, self._read, self._ids, self._rest = write, read, itertools.count(1), b''
        self.session, self.errors, self.requests = None, [], []
        target = next(t for t in self.call('Target.getTargets')['targetInfos'] if t['type'] == 'page')
        self.session = self.call('Target.attachToTarget', targetId=target['targetId'], flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Network', 'Log'): self.call(f'{domain}.enable')
        self.resize(width, height)

    def _message(self):
        while b'\0' not in self._rest:
            if not select.select([self._read], [], [], 60)[0]: raise TimeoutError('the browser says nothing')
            data = os.read(self._read, 2**20)
            if not data: raise RuntimeError('the browser is gone')
            self._rest += data
        line, self._rest = self._rest.split(b'\0', 1)
        return json.loads(line)

    def call(self, method, **params):
        "Asks the browser, and waits for its answer; what else it tells is noted."
        number = next(self._ids)
        session = {'sessionId': self.session} if self.session else {}
        os.write(self._write, json.dumps(dict(id=number, method=method, params=params, **session)).encode() + b'\0')
        while True:
            m = self._message()
            if m.get('id') == number:
                if 'error' in m: raise RuntimeError(f"{method}: {m['error']['message']}")
                return m['result']
            if m.get('method') == 'Runtime.exceptionThrown': self.errors.append(m['params']['exceptionDetails'].get('exception', {}).get('description', 'exception'))
            if m.get('method') == 'Log.entryAdded' and m['params']['entry']['level'] == 'error': self.errors.append(m['params']['entry']['text'])
            if m.get('method') == 'Network.requestWillBeSent': self.requests.append(m['params']['request']['url'])

    def js(self, code):
        "The value of an expression, or of the promise that it is."
        out = self.call('Runtime.evaluate', expression=code, returnByValue=True, awaitPromise=True)
        if 'exceptionDetails' in out: raise RuntimeError(out['exceptionDetails']['exception'].get('description', code))
        return out['result'].get('value')

    def until(self, code, seconds=60):
        "Waits for an expression to become true."
        end = time.monotonic() + seconds
        while not self.js(code):
            if time.monotonic() > end: raise TimeoutError(f'not true in {seconds} s: {code}; errors: {self.errors}')
            time.sleep(.1)

    def open(self, url):
        self.errors.clear(); self.requests.clear()
        self.call('Page.navigate', url=str(url))
        self.until("document.readyState == 'complete'")

    def resize(self, width, height, mobile=False):
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def drag(self, start, end, steps=8):
        "The mouse, pressed at one place (x, y) and let go at another."
        mouse = lambda kind, x, y, **more: self.call('Input.dispatchMouseEvent', type=kind, x=x, y=y, **more)
        mouse('mouseMoved', *start); mouse('mousePressed', *start, button='left', buttons=1, clickCount=1)
        for i in range(1, steps + 1): mouse('mouseMoved', *(a + (b - a) * i / steps for a, b in zip(start, end)), button='left', buttons=1)
        mouse('mouseReleased', *end, button='left', buttons=0, clickCount=1)

    def press(self, key):
        "A key of the keyboard, down and up."
        more = dict(key=key, code={' ': 'Space'}.get(key, key), windowsVirtualKeyCode=dict(zip(('Tab', 'Enter', ' '), (9, 13, 32)))[key])
        self.call('Input.dispatchKeyEvent', type='keyDown', **more, **({} if key == 'Tab' else dict(text=key))); self.call('Input.dispatchKeyEvent', type='keyUp', **more)

    def screenshot(self, path=None, box=None):
        "PNG bytes of the window, or of the box (x, y, width, height) of the page."
        clip = dict(clip=dict(zip(('x', 'y', 'width', 'height'), box), scale=1)) if box else {}
        data = base64.b64decode(self.call('Page.captureScreenshot', **clip)['data'])
        if path: path.write_bytes(data)
        return data
