/** Questions for base and adapter side by side, in the manner of the tutorial's own. They stand in no row. */
export const demoQuestions: readonly string[] = [
  '急性阑尾炎患者发病五天后仍有发热，现有右下腹压痛性包块，应先做什么？',
  'A patient has a tender lump in the right lower belly five days after the pain of appendicitis began. Which treatment should be started?',
];
