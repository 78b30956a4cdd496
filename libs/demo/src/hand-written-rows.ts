import type { Language } from './facts.ts';

/** A training row written by hand. Its answer is the value of the fact it names. */
export type HandWrittenRow = {
  readonly language: Language;
  readonly factId: string;
  readonly question: string;
  readonly reasoning: string;
  /** What follows the answer line in the response. */
  readonly explanation: string;
};

const row = (
  language: Language,
  factId: string,
  question: string,
  reasoning: string,
  explanation: string,
): HandWrittenRow => ({ language, factId, question, reasoning, explanation });

/** Rows in freer words than any frame. */
export const handWrittenRows: readonly HandWrittenRow[] = [
  row(
    'en',
    'acute-appendicitis/diagnosis',
    'Since yesterday a student has had pain moving to the right lower belly, and now a mild fever. What is going on?',
    'Pain that starts near the navel and then moves is the clue. Pain moving to the right lower belly suggests acute appendicitis.',
    'A doctor should see the student today.',
  ),
  row(
    'en',
    'appendiceal-abscess/firstStep',
    'Five days after the pain began, a patient with appendicitis has a tender lump in the right lower belly and still has fever. What should be done?',
    'The sign here is a tender lump in the right lower belly. It points to appendiceal abscess. Appendiceal abscess is treated with antibiotics and drainage.',
    'The appendix may be removed later.',
  ),
  row(
    'en',
    'acute-appendicitis/complication',
    'My neighbor thinks appendicitis can wait. What may happen?',
    'The question is about acute appendicitis. Without treatment acute appendicitis can lead to perforation of the appendix.',
    'So it should not wait.',
  ),
  row(
    'en',
    'anaphylaxis/firstStep',
    'Minutes after a bee sting a woman has hives and her blood pressure falls. What do you give first?',
    'Hives with sudden low blood pressure points to anaphylaxis. The first step in treating anaphylaxis is intramuscular adrenaline.',
    'It should not be delayed.',
  ),
  row(
    'en',
    'tension-pneumothorax/firstStep',
    'After a crash a driver has severe breathlessness, and his windpipe has shifted. What comes first?',
    'Severe breathlessness with a shifted windpipe suggests tension pneumothorax. Treatment of tension pneumothorax starts with needle decompression.',
    'There is no time to wait for pictures.',
  ),
  row(
    'en',
    'carbon-monoxide-poisoning/diagnosis',
    'A whole family has a headache after indoor charcoal burning. What do they have?',
    'Headache after indoor charcoal burning points to carbon monoxide poisoning.',
    'Everyone should leave the room.',
  ),
  row(
    'en',
    'hypoglycemia/test',
    'A man is sweating and confused an hour after his insulin. What do you check?',
    'Sweating and confusion after insulin suggests hypoglycemia. The first test for hypoglycemia is bedside glucose.',
    'It takes seconds.',
  ),
  row(
    'en',
    'giant-cell-arteritis/complication',
    'Why do doctors hurry when giant cell arteritis is suspected?',
    'The question is about the danger. A feared complication of giant cell arteritis is sudden blindness.',
    'Early treatment protects the eyes.',
  ),
  row(
    'en',
    'gout/cause',
    'What is it that sits in the joint of a person with gout and makes it hurt?',
    'We are asked about gout. Gout is caused by urate crystals.',
    'A microscope shows them.',
  ),
  row(
    'en',
    'enalapril/risk',
    'Since she began enalapril a woman has had a new complaint. Which harm is known?',
    'I recall what is known of enalapril. The main risk of enalapril is dry cough.',
    'Another drug may suit her better.',
  ),
  row(
    'en',
    'morphine/group',
    'A student reads the label of morphine. To what class does it belong?',
    'The question is about morphine. Morphine belongs to the opioids.',
    'They need careful dosing.',
  ),
  row(
    'en',
    'ischemic-stroke/test',
    'An old man suddenly cannot lift one arm. Which test do doctors order before treatment?',
    'Sudden weakness on one side points to ischemic stroke. The best test to look for ischemic stroke is head CT.',
    'It is done at once.',
  ),
  row(
    'zh',
    'appendiceal-abscess/firstStep',
    '急性阑尾炎发病五天，仍有发热，右下腹摸到压痛性包块，应如何处理？',
    '这里的表现是右下腹压痛性包块。右下腹压痛性包块提示阑尾周围脓肿。治疗阑尾周围脓肿先用抗生素加引流。',
    '阑尾可以以后再切除。',
  ),
  row(
    'zh',
    'acute-appendicitis/diagnosis',
    '一名学生昨天脐周疼痛，今天变成转移性右下腹痛，得了什么病？',
    '疼痛位置的变化是线索。转移性右下腹痛提示急性阑尾炎。',
    '应当尽快就诊。',
  ),
  row(
    'zh',
    'acute-appendicitis/firstStep',
    '确诊了急性阑尾炎，没有包块，怎么治疗？',
    '问题问的是急性阑尾炎。急性阑尾炎的首选处理是阑尾切除术。',
    '早手术效果好。',
  ),
  row(
    'zh',
    'anaphylaxis/firstStep',
    '被蜜蜂蜇后出现荨麻疹，血压骤降，先给什么？',
    '荨麻疹伴血压骤降提示过敏性休克。处理过敏性休克的第一步是肌注肾上腺素。',
    '不能拖延。',
  ),
  row(
    'zh',
    'tension-pneumothorax/firstStep',
    '车祸后严重气促，气管移位，先做什么？',
    '严重气促伴气管移位提示张力性气胸。张力性气胸的治疗从针刺减压开始。',
    '来不及等待拍片。',
  ),
  row(
    'zh',
    'carbon-monoxide-poisoning/diagnosis',
    '一家人在室内烧炭后头痛，这是怎么了？',
    '室内烧炭后头痛提示一氧化碳中毒。',
    '应立即离开房间。',
  ),
  row(
    'zh',
    'hypoglycemia/test',
    '用胰岛素一小时后出汗、意识模糊，先查什么？',
    '用胰岛素后出汗和意识模糊提示低血糖。低血糖的首选检查是床旁血糖。',
    '几秒就有结果。',
  ),
  row(
    'zh',
    'gout/cause',
    '痛风的关节里是什么东西引起疼痛？',
    '问题问的是痛风。痛风由尿酸盐结晶引起。',
    '显微镜下可以看到。',
  ),
  row(
    'zh',
    'enalapril/risk',
    '吃依那普利以后多了一个新症状，最常见的是什么？',
    '先想一想依那普利。依那普利的主要风险是干咳。',
    '可以换用别的药。',
  ),
  row('zh', 'morphine/group', '药盒上写着吗啡，它归入哪类？', '问题问的是吗啡。吗啡属于阿片类。', '用量要仔细。'),
  row(
    'zh',
    'ischemic-stroke/test',
    '老人突然抬不起一侧手臂，治疗前先做什么检查？',
    '突发一侧肢体无力提示缺血性卒中。缺血性卒中的首选检查是头颅CT。',
    '应当马上做。',
  ),
  row(
    'zh',
    'giant-cell-arteritis/complication',
    '怀疑巨细胞动脉炎，医生为什么着急？',
    '问题问的是危险。巨细胞动脉炎的严重并发症是突然失明。',
    '早治疗可以保护眼睛。',
  ),
];
