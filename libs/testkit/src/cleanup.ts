import { type ChildProcess, spawn } from 'node:child_process';
import type { Writable } from 'node:stream';

/**
 * Reads lines `+group ID`, `-group ID` and `+folder PATH`. When its input ends, which it does however the process at the other end
 * ends, SIGKILL included, it kills the process groups and then removes the folders.
 */
const guardScript = `
groups=' '
folders=
newline='
'
while read -r kind value; do
  case $kind in
    +group) groups="$groups$value " ;;
    -group) groups=\${groups%% "$value "*}' '\${groups#* "$value "} ;;
    +folder) folders="$folders$value$newline" ;;
  esac
done
for group in $groups; do kill -KILL "-$group"; done
printf '%s' "$folders" | while read -r folder; do rm -rf -- "$folder" || { sleep 0.5; rm -rf -- "$folder"; }; done
`;

let guardInput: Writable | undefined;

/** One guard for this process, in a session of its own, so that no signal meant for this one reaches it. */
function tellGuard(line: string): void {
  if (!guardInput) {
    const guard: ChildProcess = spawn('sh', ['-c', guardScript], {
      stdio: ['pipe', 'ignore', 'ignore'],
      detached: true,
    });
    guard.unref();
    guardInput = guard.stdin!;
    (guardInput as unknown as { unref(): void }).unref();
    guardInput.on('error', () => {});
  }
  guardInput.write(`${line}\n`);
}

/** Sends a signal to every process of a group; false if none is left. */
export function signalGroup(group: number, signal: NodeJS.Signals): boolean {
  try {
    process.kill(-group, signal);
    return true;
  } catch {
    return false;
  }
}

/** Kills the group when this process ends, unless it is forgotten before. */
export function killAtExit(group: number): { forget(): void } {
  tellGuard(`+group ${group}`);
  return { forget: () => tellGuard(`-group ${group}`) };
}

/** Removes the folder when this process ends. */
export function removeAtExit(folder: string): void {
  tellGuard(`+folder ${folder}`);
}
