/** Writes docs/faults.md; run it after a change of the catalogue. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { root } from '../tidy/repository.js';
import { page } from './page.js';

writeFileSync(join(root, 'docs', 'faults.md'), page());
